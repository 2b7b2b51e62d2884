"""The prediction of core neurons. Arrays in, core sets out: no model and no file of one."""
