"""Commands and pages that are not needed to train: doctor, top, the report of a run, measuring hardware."""
