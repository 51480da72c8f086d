"""From a job to a training that is ready for its first step."""
