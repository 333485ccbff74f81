//! `collector doctor`: what this host allows.
