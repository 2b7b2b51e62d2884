"""The paper's tasks: data in the field's formats, prompts, the field's metrics, and a study that resumes."""
