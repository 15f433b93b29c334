"""The variables of the settings: name, meaning, default as text."""

# This module is generated from the code by `python docs/reference.py`; edit the code, not the module.
# fmt: off
VARIABLES = (
    ("NBIA_ARCHIVE", "embedded, tcia, nlst, or a base URL that ends in /nbia-api", "embedded"),
    ("NBIA_API", "v2 (that of the guide, with a token) or v4 (newer, no token needed)", "v2"),
    ("NBIA_USERNAME", "Account at the archive", "nbia_guest"),
    ("NBIA_CA_BUNDLE", "File of certificates to trust", ""),
    ("NBIA_MAX_IN_FLIGHT", "Most requests in flight to the archive at a time, per process", "16"),
    ("NBIA_BWLIMIT", "Most bytes per second from the archive, per process, such as 50MB", ""),
    ("NBIA_LAKE", "Directory or URI of the lake, such as /data/tcia or s3://bucket/tcia", "./lake"),
    ("NBIA_COLLECTIONS", "Names or globs of the collections whose tables are mirrored", "*"),
    ("NBIA_IMAGES", "Names or globs of the collections whose images are mirrored", ""),
    ("NBIA_HEADERS", "Names or globs of the collections whose files' headers are read into tables", ""),
    ("NBIA_SELECT", "Which series of the mirrored collections are wanted", ""),
    ("NBIA_METADATA", "How series_metadata is requested on v2", "auto"),
    ("NBIA_FSYNC", "Whether what is finished is flushed to the disk, so that it survives a loss of power", "true"),
    ("NBIA_POLL_SECONDS", "Seconds between two ticks of a sensor, at least 60", "3600"),
    ("NBIA_CATALOGUE_CRON", "When the catalog is listed (UTC)", "0 2 * * *"),
    ("NBIA_RECONCILE_CRON", "When all collections are listed in full (UTC)", "0 3 * * *"),
    ("NBIA_ANNOTATIONS", "Whether the annotation files of mirrored series are fetched beside their images", "true"),
    ("NBIA_AUTOMATION", "Whether tables and images have automation conditions, and a sensor that evaluates them once it is turned on", "false"),  # noqa: E501
    ("NBIA_EXECUTOR", "Where the steps of images run", ""),
    ("NBIA_PASSWORD", "Password of the account, empty for the guest", ""),
)
