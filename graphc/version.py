"""The one place that states graphc's version."""

VERSION = "0.1.0"
