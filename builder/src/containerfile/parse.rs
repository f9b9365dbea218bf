//! Text → [`super::Containerfile`].
