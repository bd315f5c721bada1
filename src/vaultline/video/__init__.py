"""Frame sources and sinks on the owner's side: decoding, preprocessing, writing results."""
