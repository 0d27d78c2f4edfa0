//! Places tensors in the arena by liveness.
