//! What was typed, what the file says, the validated result.
