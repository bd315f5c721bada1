"""The equations of time and memory."""
