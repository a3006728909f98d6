//! `halfseg man`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use halfseg_files::write_atomically;

use crate::args::{Cli, ManArgs};
use crate::output::print;

/// Prints the program's page of the manual, or writes it and those of its commands into a folder.
pub fn run(args: &ManArgs) -> Result<()> {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let Some(folder) = &args.out else {
        let mut page = Vec::new();
        Man::new(program).render(&mut page)?;
        return print(&String::from_utf8(page).context("the page is no text")?);
    };
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for command in program.get_subcommands() {
        write(command, folder)?;
    }
    write(&program, folder)?;
    message!("the manual is in {}", folder.display());
    Ok(())
}

fn write(command: &Command, folder: &Path) -> Result<()> {
    let page = Man::new(command.clone());
    let path = folder.join(page.get_filename());
    write_atomically(&path, |out| page.render(out))
        .with_context(|| format!("cannot write {}", path.display()))
}
