"""The paper's tasks: data in their published formats, prompts, published metrics, and a resumable study."""
