"""The command line: one small file per verb; torch is never imported before a verb runs."""
