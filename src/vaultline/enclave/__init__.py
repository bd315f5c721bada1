"""The trusted code: one worker per device, from a challenge to the end of its stream."""
