//! `vmstream publish` and what reads what it published, from the outside.
#![cfg(feature = "tool")]

mod away;
mod bucket;
mod follow;
mod input;
mod kill9;
mod learn;
mod reader;
mod site;
mod support;
