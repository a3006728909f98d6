#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod chart;
mod error;
mod html;
mod matrix;
mod page;
mod pictures;
mod reliability;
mod report;
mod run;
mod sections;

pub use error::ReportError;
pub use report::Report;
