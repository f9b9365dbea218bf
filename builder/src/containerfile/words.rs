//! Quotes, escapes and variables of a [`super::Word`].
