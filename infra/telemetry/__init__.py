"""What a process tells about itself: metrics, logs, health."""
