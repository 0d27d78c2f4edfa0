//! Training for libmdm.
