//! `vmstream publish` and what reads what it published, from the outside.
#![cfg(feature = "tool")]

mod bucket;
mod input;
mod kill9;
mod learn;
mod reader;
mod site;
mod support;
