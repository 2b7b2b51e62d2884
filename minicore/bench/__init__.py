"""`minicore bench`: plan, measure, report."""
