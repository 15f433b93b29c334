"""Tests of nbia_pipeline."""
