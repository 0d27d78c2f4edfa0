//! Pixels in memory, as a host application holds them.
