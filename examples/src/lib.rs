//! Examples of halfseg: one per method.
