//! Config to running service.
