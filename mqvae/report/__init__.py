"""Runs -> one self-contained HTML page; reads files only, so it needs no torch."""

from mqvae.report.page import write_report

__all__ = ["write_report"]
