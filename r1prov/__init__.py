"""r1prov: one command turns fresh GPU servers into a private, full DeepSeek-R1 671B."""

__version__ = "0.1.0"
