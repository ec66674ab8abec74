//! Who holds a mount or a mount namespace.
