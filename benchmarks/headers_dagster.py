"""The headers of many small CT files through Dagster: files per second with one process and with two, and their memory.

A lake of several collections is written without an archive: files of about 8 kB with some 120 elements each, their
index and their receipts. What is measured is the materialization of the asset ``headers`` over all collections, from
the start of the run to its end: by an executor of one process, and by one that gives each step a process of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import verdict

if TYPE_CHECKING:
    import dagster as dg

    from nbia_pipeline.settings import Settings

FILES = 200_000
COLLECTIONS = 4
FILES_OF_A_SERIES = 200
BAR_FILES_PER_SECOND = 8_000.0
HERE = Path(__file__).resolve().parent
_ROOT = "1.3.6.1.4.1.14519.5.2.1"


# --- the lake


def template() -> bytes:
    """Return a CT slice of about 8 kB and 120 elements, in which ``{8 digits}`` take the place of what differs."""
    import io

    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    made = pydicom.Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    made.SOPInstanceUID = f"{_ROOT}.77777777.88888888"
    made.SeriesInstanceUID = f"{_ROOT}.66666666.1"
    made.StudyInstanceUID = f"{_ROOT}.66666666.0"
    made.Modality, made.PatientID, made.PatientName = "CT", "66666666", "66666666"
    made.InstanceNumber = "88888888"
    made.Rows = made.Columns = 50
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.PixelSpacing, made.SliceThickness = ["0.703125", "0.703125"], "1.250000"
    made.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    made.ImagePositionPatient = ["-180.000000", "-172.500000", "-88888888"]
    made.SliceLocation, made.FrameOfReferenceUID = "-88888888", f"{_ROOT}.66666666.2"
    made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    made.AcquisitionDate, made.AcquisitionTime, made.ContentTime = "20000101", "120000.000000", "120001.000000"
    made.Manufacturer, made.ManufacturerModelName, made.StudyDescription = "GE MEDICAL SYSTEMS", "LightSpeed16", "CHEST"
    made.KVP, made.XRayTubeCurrent, made.Exposure, made.ConvolutionKernel = "120", "265", "1700", "STANDARD"
    made.RescaleSlope, made.RescaleIntercept, made.RescaleType = "1", "-1024", "HU"
    made.WindowCenter, made.WindowWidth = ["-600", "40"], ["1600", "400"]
    made.PatientIdentityRemoved, made.DeidentificationMethod = "YES", "Per DICOM PS 3.15 AnnexE. Details in 0012,0064"
    for creator, group, count in (("CTP", 0x0013, 2), ("GEMS_ACQU_01", 0x0019, 40), ("GEMS_PARM_01", 0x0043, 28)):
        block = made.private_block(group, creator, create=True)
        for number in range(count):
            block.add_new(
                0x10 + number, "LO" if group == 0x13 else "DS", "Bench" if group == 0x13 else f"{number}.500000"
            )
    step = pydicom.Dataset()
    step.CodeValue, step.CodingSchemeDesignator, step.CodeMeaning = "113100", "DCM", "Basic Application Profile"
    made.DeidentificationMethodCodeSequence = [step] * 8
    made.PixelData = bytes(50 * 50 * 2)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, made, enforce_file_format=True)
    return buffer.getvalue()


def fill(lake_at: str, files: int) -> None:
    """Write the files of all collections with their index and receipts."""
    import pyarrow as pa

    from nbia_pipeline import clock
    from nbia_pipeline.lake import Lake
    from nbia_pipeline.lake.layout import series_path
    from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES

    lake, content = Lake(lake_at), template()
    lake.check_writable()
    for number, collection in enumerate(names()):
        instances: list[dict[str, Any]] = []
        receipts: list[dict[str, Any]] = []
        for first in range(0, files // COLLECTIONS, FILES_OF_A_SERIES):
            patient = f"{10_000_000 + number * 1_000_000 + first}"
            of_series = content.replace(b"66666666", patient.encode()).replace(b"77777777", patient.encode())
            series = {
                "Collection": collection,
                "SeriesInstanceUID": f"{_ROOT}.{patient}.1",
                "StudyInstanceUID": f"{_ROOT}.{patient}.0",
                "PatientID": patient,
            }
            folder = series_path(collection, patient, series["StudyInstanceUID"], series["SeriesInstanceUID"])
            Path(lake_at, folder).mkdir(parents=True)
            count = min(FILES_OF_A_SERIES, files // COLLECTIONS - first)
            for at in range(count):
                own = f"{10_000_000 + at}"
                uid = f"{_ROOT}.{patient}.{own}"
                path = f"{folder}/{uid}.dcm"
                Path(lake_at, path).write_bytes(of_series.replace(b"88888888", own.encode()))
                instances.append({**series, "SOPInstanceUID": uid, "InstanceNumber": int(own), "Path": path})
            same = {
                "Status": "complete",
                "ImageCount": count,
                "Bytes": count * len(content),
                "SeriesMD5": f"{first:032x}",
            }
            receipts.append({**series, **same, "FetchedAt": clock.utc_now()})
        known = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "Size": len(content), "MD5": "0" * 32}
        for table, rows in ((INSTANCES, [{**row, **known} for row in instances]), (IMAGE_SERIES, receipts)):
            lake.write_table(table, pa.Table.from_pylist(rows, schema=table.schema), collection)


def names() -> list[str]:
    """Return the collections."""
    return [f"Bench-{number}" for number in range(COLLECTIONS)]


# --- measuring


def settings_of(lake: str) -> Settings:
    """Return the settings of a code location whose archive is never called."""
    from nbia_pipeline.settings import Settings

    return Settings(archive="http://127.0.0.1:9/nbia-api", lake=lake, images=("*",))


def job_of(lake: str, processes: int) -> dg.JobDefinition:
    """Return the job with the asset ``headers`` and nothing else; in a step's own process it is made again."""
    import dagster as dg

    from nbia_pipeline.definitions import build_definitions
    from nbia_pipeline.defs.naming import Naming

    # Processes that begin as copies of one which has the modules take half a second, others three.
    copies = {"forkserver": {"preload_modules": ["nbia_pipeline.definitions"]}}
    several = dg.multiprocess_executor.configured({"max_concurrent": processes, "start_method": copies})
    executor = several if processes > 1 else dg.in_process_executor
    only = dg.AssetSelection.assets(Naming().key("headers")).without_checks()
    job = dg.define_asset_job("only_headers", selection=only, executor_def=executor)
    definitions = dg.Definitions.merge(build_definitions(settings_of(lake)), dg.Definitions(jobs=[job]))
    return definitions.resolve_job_def("only_headers")


def measured(lake: str, home: Path, processes: int) -> tuple[float, dict[str, Any]]:
    """Read all headers again, and return the seconds of the run, and what its asset says of one of the collections."""
    import dagster as dg

    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        instance.add_dynamic_partitions("nbia_collections", names())
        kwargs = {"lake": lake, "processes": processes}
        job = dg.build_reconstructable_job(
            Path(__file__).stem, "job_of", reconstructable_kwargs=kwargs, reconstructor_working_directory=str(HERE)
        )
        ends = {"dagster/asset_partition_range_start": names()[0], "dagster/asset_partition_range_end": names()[-1]}
        config = {
            "ops": {"nbia__headers": {"config": {"full": True}}},
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        }
        started = time.perf_counter()
        if not dg.execute_job(job, instance, run_config=config, tags=ends).success:
            raise SystemExit("the run failed")
        seconds = time.perf_counter() - started
        of = dg.AssetRecordsFilter(asset_key=dg.AssetKey(["nbia", "headers"]), asset_partitions=[names()[-1]])
        event = instance.fetch_materializations(of, limit=1).records[0].asset_materialization
    return seconds, {name: value.value for name, value in event.metadata.items()} if event else {}


def main() -> int:
    """Measure, print, and return 1 if a bar does not hold."""
    parser = argparse.ArgumentParser(description="The headers of many small CT files through Dagster.")
    parser.add_argument("--files", type=int, default=FILES, help="how many (default: %(default)s)")
    parser.add_argument("--folder", help="where to write the lake (default: the temporary directory)")
    options = parser.parse_args()
    print(f"{options.files:,} files of {len(template()):,} bytes; load before {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="nbia-bench-", dir=options.folder) as folder:
        lake = str(Path(folder) / "lake")
        fill(lake, options.files)
        rates = []
        for processes in (1, 2):
            seconds, said = measured(lake, Path(folder) / f"home-{processes}", processes)
            rates.append(said["files_per_second"])
            print(
                f"{processes} processes: {rates[-1]:,} files/s, the run {seconds:.1f} s; peak memory of a step "
                f"{said['peak_memory']}; {said['bytes_per_file']} bytes a file",
                flush=True,
            )
    best = max(rates)
    print(f"at least {BAR_FILES_PER_SECOND:,.0f} files/s: {verdict(best >= BAR_FILES_PER_SECOND)}")
    return 0 if best >= BAR_FILES_PER_SECOND else 1


if __name__ == "__main__":
    sys.exit(main())
