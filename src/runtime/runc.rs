//! runc: `state.json`.
