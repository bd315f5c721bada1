"""The scheduler's own objects in virtual time: what a cluster would do, without one."""
