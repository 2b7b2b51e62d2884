"""The paper's measurements, each a module: data in, numbers out."""
