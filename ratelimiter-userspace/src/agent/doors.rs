//! The check API beside HTTP: gRPC for proxies, the Redis protocol. Their listeners, the descriptor
//! files, and what a reload changes of them.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::check::Checks;
use crate::config::{Right, Settings};
use crate::http::Listener;
use crate::http::listen::ListenError;
use crate::policy::model::Mode;
use crate::resp::{self, Throttle};

/// What outlives the listeners' connections.
pub(super) struct Doors {
    checks: Checks,
    throttle: Arc<Throttle>,
    #[cfg(feature = "grpc")]
    descriptors: Arc<crate::grpc::Service>,
}

/// Descriptor files, read and checked, not in force yet.
pub(super) struct Descriptors {
    #[cfg(feature = "grpc")]
    rules: crate::grpc::Rules,
}

/// Binds the listeners for gRPC and the Redis protocol.
pub(super) async fn bind(
    settings: &Settings,
) -> Result<(Option<Listener>, Option<Listener>), ListenError> {
    let locked = settings
        .credentials
        .values()
        .any(|credential| credential.grants(Right::Check));
    let mut bound = [None, None];
    for (place, name, listen) in [
        (0, "check.grpc", settings.check.grpc),
        (1, "check.resp", settings.check.resp),
    ] {
        let Some(address) = listen.address() else {
            continue;
        };
        if place == 0 && cfg!(not(feature = "grpc")) {
            tracing::info!("built without the feature `grpc`: `check.grpc` is not listened on");
            continue;
        }
        let listener = Listener::tcp_for(name, address, locked).await?;
        tracing::info!(%address, "{name}");
        if let Some(place) = bound.get_mut(place) {
            *place = Some(listener);
        }
    }
    let [grpc, resp] = bound;
    Ok((grpc, resp))
}

/// Reads the descriptor files.
///
/// # Errors
///
/// What is wrong, with file, line and column.
pub(super) fn read(settings: &Settings) -> Result<Descriptors, String> {
    let files = &settings.check.descriptors;
    #[cfg(not(feature = "grpc"))]
    {
        if files.is_empty() {
            return Ok(Descriptors {});
        }
        Err("`check.descriptors` names files, and this program was built without gRPC".to_owned())
    }
    #[cfg(feature = "grpc")]
    {
        use crate::grpc::descriptors::MAX_FILE_BYTES;
        let mut texts = Vec::new();
        for file in files {
            let failed = |error| format!("`check.descriptors`: cannot read `{file}`: {error}");
            let metadata = std::fs::metadata(file).map_err(failed)?;
            if metadata.len() > MAX_FILE_BYTES {
                return Err(format!(
                    "`check.descriptors`: `{file}` has {} bytes; it may have at most \
                     {MAX_FILE_BYTES}",
                    metadata.len()
                ));
            }
            texts.push(std::fs::read_to_string(file).map_err(failed)?);
        }
        let named = files.iter().zip(&texts);
        let rules =
            crate::grpc::Rules::parse(named.map(|(file, text)| (file.as_str(), text.as_str())))
                .map_err(|problem| problem.to_string())?;
        Ok(Descriptors { rules })
    }
}

impl Doors {
    /// Doors that follow `checks`.
    pub(super) fn new(checks: &Checks) -> Self {
        Self {
            checks: checks.clone(),
            throttle: Arc::new(Throttle::new(checks.limiter().clone())),
            #[cfg(feature = "grpc")]
            descriptors: Arc::new(crate::grpc::Service::new(checks.limiter().clone())),
        }
    }

    /// Puts descriptors in force under the agent's mode, which bounds theirs.
    ///
    /// # Errors
    ///
    /// More distinct policies than there may be.
    pub(super) fn configure(&self, descriptors: Descriptors, mode: Mode) -> Result<(), String> {
        self.throttle.set_shadow(mode != Mode::Enforce);
        #[cfg(feature = "grpc")]
        {
            for note in &descriptors.rules.notes {
                tracing::info!("{note}");
            }
            self.descriptors
                .replace(descriptors.rules, mode != Mode::Enforce)
                .map_err(|error| error.to_string())?;
        }
        #[cfg(not(feature = "grpc"))]
        let Descriptors {} = descriptors;
        Ok(())
    }

    /// Serves the listeners until `stop` resolves, each with one of its own.
    pub(super) fn open<S>(
        &self,
        settings: &Settings,
        (grpc, resp): (Option<Listener>, Option<Listener>),
        servers: &mut JoinSet<()>,
        stop: impl Fn() -> S,
    ) -> anyhow::Result<()>
    where
        S: Future<Output = ()> + Send + 'static,
    {
        let connections = settings.check.max_connections as usize;
        let patience = Duration::from_millis(settings.check.header_timeout_ms);
        if let Some(listener) = resp {
            let limits = resp::Limits {
                connections,
                command_timeout: patience,
                ..resp::Limits::default()
            };
            let admit = self.admit(&listener);
            if let Listener::Tcp(listener) = listener {
                let throttle = Arc::clone(&self.throttle);
                servers.spawn(resp::serve(listener, throttle, admit, limits, stop()));
            }
        }
        #[cfg(feature = "grpc")]
        if let Some(listener) = grpc {
            let limits = crate::grpc::Limits {
                connections,
                patience,
                request_bytes: usize::try_from(settings.check.max_body_bytes).unwrap_or(usize::MAX),
                drain: Duration::from_millis(settings.safety.drain_ms),
                ..crate::grpc::Limits::default()
            };
            let admit = self.admit(&listener);
            let server = crate::grpc::Server::new(Arc::clone(&self.descriptors), admit, limits)?;
            if let Listener::Tcp(listener) = listener {
                servers.spawn(server.serve(listener, stop()));
            }
        }
        #[cfg(not(feature = "grpc"))]
        drop(grpc);
        Ok(())
    }

    fn admit(&self, listener: &Listener) -> resp::Admit {
        let (checks, exposed) = (self.checks.clone(), listener.is_exposed());
        Arc::new(move |token| checks.gate().admit_check(exposed, token).is_ok())
    }
}
