//! A log that tests read.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex, MutexGuard};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// The fields of an event or a span, as text.
pub(crate) type Fields = BTreeMap<String, String>;

/// What was said on this thread while it was installed.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Said>>);

#[derive(Default)]
struct Said {
    lines: Vec<Line>,
    spans: Vec<(&'static str, Fields)>,
}

/// An event.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) level: Level,
    pub(crate) target: String,
    pub(crate) message: String,
    pub(crate) fields: Fields,
    /// The spans that it is in, from the outermost.
    pub(crate) spans: Vec<(&'static str, Fields)>,
}

impl Line {
    /// A field, or nothing.
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

impl Log {
    /// Listens to what the library says on this thread, until the guard is dropped.
    pub(crate) fn listen(level: Level) -> (Self, DefaultGuard) {
        Self::listen_to("distribute", level)
    }

    /// The same, to whatever begins with this.
    pub(crate) fn listen_to(target: &str, level: Level) -> (Self, DefaultGuard) {
        let log = Self::default();
        let filter = Targets::new().with_target(target, level);
        let subscriber = tracing_subscriber::registry().with(log.clone().with_filter(filter));
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.0.lock().unwrap()
    }

    /// All events.
    pub(crate) fn lines(&self) -> Vec<Line> {
        self.said().lines.clone()
    }

    /// The events with this message.
    pub(crate) fn of(&self, message: &str) -> Vec<Line> {
        self.lines().into_iter().filter(|line| line.message == message).collect()
    }

    /// The one event with this message.
    pub(crate) fn only(&self, message: &str) -> Line {
        let lines = self.of(message);
        let [line] = &lines[..] else { panic!("{} times {message:?}: {lines:#?}", lines.len()) };
        line.clone()
    }

    /// The spans of this name, with all that was recorded in them.
    pub(crate) fn spans(&self, name: &str) -> Vec<Fields> {
        self.said().spans.iter().filter(|(of, _)| *of == name).map(|(_, fields)| fields.clone()).collect()
    }

    /// Everything, as text.
    pub(crate) fn text(&self) -> String {
        let said = self.said();
        format!("{:?}\n{:?}", said.lines, said.spans)
    }
}

struct Gather<'a>(&'a mut Fields);

impl Visit for Gather<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
}

/// At which place of the spans it is.
struct At(usize);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Log {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::new();
        attributes.record(&mut Gather(&mut fields));
        let mut said = self.said();
        said.spans.push((attributes.metadata().name(), fields));
        context.span(id).unwrap().extensions_mut().insert(At(said.spans.len() - 1));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(At(at)) = context.span(id).unwrap().extensions().get() {
            values.record(&mut Gather(&mut self.said().spans[*at].1));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::new();
        event.record(&mut Gather(&mut fields));
        let mut said = self.said();
        let within = context.event_scope(event).into_iter().flat_map(|scope| scope.from_root());
        let at: Vec<_> = within.filter_map(|span| span.extensions().get().map(|At(at)| *at)).collect();
        let spans = at.into_iter().map(|at| said.spans[at].clone()).collect();
        let message = fields.remove("message").unwrap_or_default();
        let (level, target) = (*event.metadata().level(), event.metadata().target().to_owned());
        said.lines.push(Line { level, target, message, fields, spans });
    }
}

impl Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}
