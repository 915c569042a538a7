//! The world database built into the binary.
