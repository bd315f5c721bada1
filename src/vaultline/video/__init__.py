"""The owner's ends of a pipeline: frames in (files, folders, cameras), results out (JSON lines).

``sources`` decodes frames, ``preprocess`` turns one into the tensor that a model wants, ``sinks``
writes what came back. Nothing here knows of keys, enclaves or sockets of the data plane.
"""

from vaultline.video.preprocess import (
    Preprocessing,
    Preprocessor,
    default_preprocessing,
    load_preprocessing,
)
from vaultline.video.sinks import JsonLinesSink, Result, StageTimes
from vaultline.video.sources import Frame, Source, open_source

__all__ = [
    "Frame",
    "JsonLinesSink",
    "Preprocessing",
    "Preprocessor",
    "Result",
    "Source",
    "StageTimes",
    "default_preprocessing",
    "load_preprocessing",
    "open_source",
]
