//! `halfseg serve`.

use anyhow::Result;

use crate::args::ServeArgs;

/// Serves networks over HTTP until it is asked to stop.
#[cfg(not(feature = "serve"))]
pub fn run(_: &ServeArgs) -> Result<()> {
    let message = "this program was built without the server: build it with `--features serve`";
    Err(crate::failure::Usage(message.to_owned()).into())
}

#[cfg(feature = "serve")]
pub use self::built_in::run;

#[cfg(feature = "serve")]
mod built_in {
    use std::net::TcpListener;
    use std::path::Path;
    use std::time::Duration;

    use anyhow::{Context, bail};
    use halfseg_data::unique_names;
    use halfseg_predict::Predictor;
    use halfseg_server::{Model, Server, ServerConfig};
    use halfseg_train::RunPrecision;

    use super::*;
    use crate::args::InferenceArgs;
    use crate::output::print;
    use crate::settings::Loaded;
    use crate::{interrupt, published};

    /// How often it is looked whether the server is asked to stop.
    const LOOK_EVERY: Duration = Duration::from_millis(50);
    /// What a file with a token has at most.
    const LONGEST_TOKEN: usize = 4096;

    pub fn run(args: &ServeArgs) -> Result<()> {
        let config = config(args)?;
        // Before minutes of loading.
        let address = (args.host, args.port);
        let listener = TcpListener::bind(address)
            .with_context(|| format!("cannot listen on {}, port {}", args.host, args.port))?;
        if !args.host.is_loopback() && config.token.is_none() {
            warning!(
                "{} is reached from other machines, and whoever does may ask: --token-file names a token to ask for",
                args.host
            );
        }
        let names: Vec<_> = args.checkpoint.iter().map(|path| name(path)).collect();
        let names = unique_names(&names);
        let models = names.iter().zip(&args.checkpoint);
        let models = models
            .map(|(name, path)| model(args, name, path))
            .collect::<Result<Vec<_>>>()?;
        let server = Server::start(models, config, listener)?;
        message!("serving {}; Ctrl-C ends", names.join(", "));
        print(&format!("http://{}/\n", server.address()))?;
        while !interrupt::requested() {
            std::thread::sleep(LOOK_EVERY);
        }
        server.stop();
        message!("stopped: everything that was accepted is answered");
        Ok(())
    }

    fn config(args: &ServeArgs) -> Result<ServerConfig> {
        let mut config = ServerConfig::default();
        config.queue = args.queue.get();
        config.batch = args.batch.get();
        config.max_bytes = args.max_bytes.get();
        config.max_pixels = args.max_pixels;
        config.memory = args.memory.saturating_mul(1 << 20);
        config.max_connections = args.connections.get();
        config.timeout = Duration::from_secs(args.timeout.get() as u64);
        config.body_timeout = config.timeout / 2;
        config.header_timeout = config.header_timeout.min(config.timeout);
        config.warm_up = Some((args.warm_up.width, args.warm_up.height));
        config.cors = args.cors.clone();
        if let Some(path) = &args.token_file {
            let text = halfseg_files::read_text(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let token = text.trim();
            let is_visible = token.bytes().all(|byte| byte.is_ascii_graphic());
            if token.is_empty() || token.len() > LONGEST_TOKEN || !is_visible {
                bail!(
                    "{}: expected a token in one line of 1 to {LONGEST_TOKEN} visible ASCII characters, found another text",
                    path.display()
                );
            }
            config.token = Some(token.to_owned());
        }
        Ok(config)
    }

    /// The folder and the name that a checkpoint goes by: of a run its folder, of a file its stem.
    fn name(path: &Path) -> (String, String) {
        if let Some(name) = published::name(path) {
            return ("zoo".into(), name.into());
        }
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let part = |part: Option<&std::ffi::OsStr>| {
            let text = part.map(|part| part.to_string_lossy().into_owned());
            text.unwrap_or_else(|| "model".into())
        };
        let name = match path.is_dir() {
            true => part(path.file_name()),
            false => part(path.file_stem()),
        };
        (part(path.parent().and_then(Path::file_name)), name)
    }

    /// The network of a checkpoint as it is to be run, and in the other precisions.
    fn model(args: &ServeArgs, name: &str, checkpoint: &Path) -> Result<Model> {
        let inference = InferenceArgs {
            checkpoint: checkpoint.to_owned(),
            pass: args.pass.clone(),
            precision: args.precision,
            ..InferenceArgs::default()
        };
        let loaded = Loaded::open(&inference, None)?;
        let own = loaded.recipe.precision.dtype;
        let mut model = Model::new(name, &own.to_string(), loaded.predictor());
        for other in [RunPrecision::F32, RunPrecision::F16, RunPrecision::Bf16] {
            if other != own {
                let eval = loaded.recipe.eval.clone();
                let predictor = Predictor::new(&loaded.model, other.policy(), eval)
                    .with_classes(loaded.classes.clone())
                    .with_pictures(loaded.pictures.clone());
                model = model.with_precision(&other.to_string(), predictor);
            }
        }
        Ok(model)
    }
}
