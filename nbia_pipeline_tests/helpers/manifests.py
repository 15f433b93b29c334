"""Manifests of NBIA, as its pages save them."""

from __future__ import annotations

HEAD = """downloadServerUrl=https://public.example.org/nbia-download/servlet/DownloadServlet
includeAnnotation=true
noOfrRetry=4
databasketId=manifest-1700000000000.tcia
manifestVersion=3.0
ListOfSeriesToDownload=
"""
