"""Annotation files: what people and programs drew or wrote about the images of a series, beside them in the lake.

They are optional: whatever the archive answers, images and tables do not depend on it.
"""
