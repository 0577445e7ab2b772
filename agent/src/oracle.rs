//! The slow, obvious second implementation that the compiled maps are held against. It shares the model's types with
//! compile, and nothing else.

pub mod policy;
pub mod services;
