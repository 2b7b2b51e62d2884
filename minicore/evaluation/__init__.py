"""What core sets cost: quality, frontier, tasks, and what large studies run on."""
