//! A xenstore client: sans-I/O core, blocking and async shells.
