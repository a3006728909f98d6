//! The program as a user runs it: jobs that work, and input that cannot.

mod audit;
mod bad_input;
mod bands;
mod bench;
mod config;
mod eval;
mod export;
mod film;
mod hidden;
mod manners;
mod own;
mod plot;
mod predict;
mod published;
mod reference;
mod serve;
mod shown;
mod support;
mod train;
mod tuning;
