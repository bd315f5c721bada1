"""The command line: one file per verb, each parses, builds a request, calls the library, prints."""
