//! Logs: `tracing` events, as lines on standard error.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How log lines are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Format {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line: `timestamp`, `level`, `target`, `fields`.
    Json,
}

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter cannot be understood.
    #[error(
        "--log-filter {filter:?}: {source}; write a level (info), or directives (info,sluice::source=debug)"
    )]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Somebody was faster.
    #[error("logging is set up already: {0}")]
    Twice(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Sets logging up for the process.
///
/// # Errors
/// The filter cannot be understood, or logging is set up already.
pub fn init(filter: &str, format: Format) -> Result<(), LoggingError> {
    let colors = io::stderr().is_terminal();
    let subscriber = subscriber(filter, format, colors, io::stderr)?;
    tracing::subscriber::set_global_default(subscriber)
        .map_err(|e| LoggingError::Twice(Box::new(e)))?;
    // Libraries that speak `log`: their records meet the same filter.
    tracing_log::LogTracer::init().map_err(|e| LoggingError::Twice(Box::new(e)))
}

fn subscriber<W>(
    filter: &str,
    format: Format,
    colors: bool,
    writer: W,
) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, LoggingError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let parsed = EnvFilter::try_new(filter).map_err(|source| LoggingError::Filter {
        filter: filter.to_owned(),
        source,
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_ansi(colors)
        .with_writer(writer);
    Ok(match format {
        Format::Text => Box::new(builder.finish()),
        Format::Json => Box::new(builder.json().finish()),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(filter: &str, format: Format) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = subscriber(filter, format, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(object = "Service shop/web", "rejected");
            tracing::debug!("unseen");
        });
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_has_level_message_and_fields() {
        let text = logged("info", Format::Text);
        assert!(
            text.contains("INFO") && text.contains("rejected object=\"Service shop/web\""),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn json_is_json() {
        let text = logged("info", Format::Json);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["fields"]["message"], "rejected");
        assert_eq!(value["fields"]["object"], "Service shop/web");
    }

    #[test]
    fn a_filter_that_is_none_is_named() {
        let error = subscriber("info,=", Format::Text, false, io::sink)
            .err()
            .unwrap();
        assert!(
            error.to_string().starts_with("--log-filter \"info,=\""),
            "{error}"
        );
    }
}
