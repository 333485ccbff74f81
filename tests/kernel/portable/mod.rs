//! What must hold on every kernel of the matrix.

mod cpu;
mod ends;
mod identity;
mod losses;
mod memory;
