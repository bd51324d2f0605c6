//! `holdfastctl top`: what a daemon does, live on a terminal. Asks for what other commands show, and
//! never for anything else.

pub mod data;
mod screen;
mod table;
pub mod terminal;
mod view;

pub use screen::{Key, Screen};
pub use table::{Subject, SubjectError};
pub use view::{frame, render};
