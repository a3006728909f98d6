//! `halfseg config`.

use anyhow::Result;

use crate::args::ConfigArgs;
use crate::output::print;
use crate::settings;

/// Prints the whole effective configuration to stdout.
pub fn run(args: &ConfigArgs) -> Result<()> {
    print(&settings::recipe(&args.recipe, args.policy.as_deref())?.to_toml())
}
