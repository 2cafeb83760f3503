//! Single stories, told event by event, where the order itself is the point.
mod joint;
mod source;
mod target;
