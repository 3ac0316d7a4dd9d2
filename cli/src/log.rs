//! `stillframe log`: the log of a directory, looked into while whoever may be writing it goes on.

use std::collections::HashMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value, json};
use stillframe::{LogEffect, LogEnd, LogReader, LogRecord, LogRecordKind, SegmentBeginning};

use crate::inspect::date;
use crate::text::{Form, hex};
use crate::{Answer, EXIT_CODES, ui};

/// Look into the log of a database, open or not; nothing is changed
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Log {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// List the segments: where each begins, and what it goes on from
    List {
        /// The database's directory
        directory: PathBuf,
    },
    /// Print every batch, oldest first
    ///
    /// One line for each change, with the number of its batch before it. With --json one object for each batch.
    Dump(Dump),
    /// Read all of the log and check every byte of it
    Verify {
        /// The database's directory
        directory: PathBuf,
    },
}

#[derive(clap::Args)]
struct Dump {
    /// The database's directory
    directory: PathBuf,
    /// Begin at this batch
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    from: u64,
    /// End with this batch
    #[arg(long, value_name = "SEQ", default_value_t = u64::MAX)]
    to: u64,
    /// Print no values
    #[arg(long)]
    keys_only: bool,
    /// Print keys and values in hexadecimal
    #[arg(long)]
    hex: bool,
}

#[derive(Serialize)]
struct Segment {
    file: String,
    bytes: u64,
    state: &'static str,
    after_seq: Option<u64>,
    after_history: Option<String>,
    after_ms: Option<u64>,
    previous: Option<u64>,
    fault: Option<String>,
}

impl Log {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<Answer> {
        match self.command {
            Command::List { directory } => list(&LogReader::open(directory)?, json),
            Command::Dump(dump) => dump.run(json),
            Command::Verify { directory } => {
                let reading = ui::spinner("verifying");
                let end = LogReader::open(directory)?.each(|_| ControlFlow::Continue(()));
                reading.finish_and_clear();
                verified(&end?, json)
            }
        }
    }
}

fn list(reader: &LogReader, as_json: bool) -> anyhow::Result<Answer> {
    let mut is_whole = true;
    let segments = reader.segments().map(|segment| match segment {
        Ok(info) => {
            let mut segment = Segment {
                file: info.path.to_string_lossy().into_owned(),
                bytes: info.bytes,
                state: "blank",
                after_seq: None,
                after_history: None,
                after_ms: None,
                previous: None,
                fault: None,
            };
            match info.beginning {
                SegmentBeginning::After { position, time_ms, previous } => {
                    segment.state = "begun";
                    segment.after_seq = Some(position.seq.0);
                    segment.after_history = Some(position.history.to_string());
                    segment.after_ms = Some(time_ms);
                    segment.previous = previous;
                }
                SegmentBeginning::Unclear(fault) => {
                    (segment.state, segment.fault) = ("unclear", Some(fault.to_string()));
                }
                _ => {}
            }
            segment
        }
        Err(error) => {
            is_whole = false;
            let file = match error {
                stillframe::Error::Corrupt { file, .. } => file.to_string_lossy().into_owned(),
                stillframe::Error::Io { path, .. } => path.to_string_lossy().into_owned(),
                _ => String::new(),
            };
            Segment {
                file,
                bytes: 0,
                state: "damaged",
                after_seq: None,
                after_history: None,
                after_ms: None,
                previous: None,
                fault: Some(error.to_string()),
            }
        }
    });
    let segments: Vec<Segment> = segments.collect();
    if as_json {
        ui::print_json(&segments)?;
    } else {
        let mut out = ui::stdout();
        for segment in &segments {
            let Segment { file, bytes, state, fault, .. } = segment;
            let bytes = ui::bytes(*bytes);
            match (segment.after_seq, segment.after_ms, fault) {
                (Some(seq), Some(ms), _) => {
                    let seq = ui::count(seq);
                    writeln!(out, "{file}  {bytes:>10}  {state}  after {seq} of {}", date(ms))?;
                }
                (.., Some(fault)) => writeln!(out, "{file}  {bytes:>10}  {state}  {fault}")?,
                _ => writeln!(out, "{file}  {bytes:>10}  {state}")?,
            }
        }
        out.flush()?;
    }
    Ok(if is_whole { Answer::Yes } else { Answer::No })
}

fn verified(end: &LogEnd, as_json: bool) -> anyhow::Result<Answer> {
    let LogEnd { position, time_ms, records, torn_bytes, .. } = *end;
    if as_json {
        ui::print_json(&json!({
            "seq": position.seq.0, "history": position.history.to_string(), "time_ms": time_ms,
            "records": records, "torn_bytes": torn_bytes,
        }))?;
    } else {
        let mut out = ui::stdout();
        match records {
            0 => writeln!(out, "whole: nothing was written to it")?,
            _ => {
                let (records, seq) = (ui::batches(records), ui::count(position.seq.0));
                writeln!(out, "whole: {records}, the last is {seq} of {}", date(time_ms))?;
            }
        }
        if torn_bytes > 0 {
            let torn = ui::bytes(torn_bytes);
            writeln!(
                out,
                "behind it {torn} of a batch that is unfinished: of a crash, or being written"
            )?;
        }
        out.flush()?;
    }
    Ok(Answer::Yes)
}

/// What keyspaces are called, as far as the log has told.
#[derive(Default)]
struct Names(HashMap<u32, String>);

impl Names {
    fn of(&self, id: u32) -> String {
        let unknown = || if id == 0 { "names".to_owned() } else { format!("#{id}") };
        self.0.get(&id).cloned().unwrap_or_else(unknown)
    }

    fn learn(&mut self, effect: &LogEffect<'_>, form: Form) {
        if let LogEffect::Put { keyspace: 0, key, value, .. } = effect
            && let Ok(id) = (*value).try_into()
        {
            self.0.insert(u32::from_le_bytes(id), form.write(key));
        }
    }
}

impl Dump {
    fn run(self, as_json: bool) -> anyhow::Result<Answer> {
        let form = if self.hex { Form::Hex } else { Form::Escaped };
        let mut names = Names::default();
        let mut out = ui::stdout();
        let mut failed = Ok(());
        LogReader::open(&self.directory)?.each(|record| {
            if record.position.seq.0 > self.to {
                return ControlFlow::Break(());
            }
            if let LogRecordKind::Batch { effects, .. } = &record.kind {
                effects.clone().for_each(|effect| names.learn(&effect, form));
            }
            if record.position.seq.0 < self.from {
                return ControlFlow::Continue(());
            }
            failed = match as_json {
                true => self.json(record, form, &names, &mut out),
                false => self.print(record, form, &names, &mut out),
            };
            if failed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        failed?;
        out.flush()?;
        Ok(Answer::Yes)
    }

    fn print(
        &self,
        record: &LogRecord<'_>,
        form: Form,
        names: &Names,
        out: &mut impl Write,
    ) -> std::io::Result<()> {
        let seq = record.position.seq;
        match &record.kind {
            LogRecordKind::History { writer } => {
                let (history, writer) = (record.position.history, hex(writer));
                writeln!(out, "{seq}\thistory\t{history}\tby {writer}\t{}", date(record.time_ms))
            }
            LogRecordKind::Batch { effects, .. } => effects.clone().try_for_each(|effect| {
                let tell = |effect: &str, id: u32| format!("{seq}\t{effect}\t{}", names.of(id));
                match effect {
                    LogEffect::Put { keyspace, key, value, expire_at } => {
                        write!(out, "{}\t{}", tell("put", keyspace), form.write(key))?;
                        if !self.keys_only {
                            write!(out, "\t{}", form.write(value))?;
                        }
                        if expire_at > 0 {
                            write!(out, "\texpires {}", date(expire_at))?;
                        }
                        writeln!(out)
                    }
                    LogEffect::Remove { keyspace, key } => {
                        writeln!(out, "{}\t{}", tell("remove", keyspace), form.write(key))
                    }
                    LogEffect::RemoveRange { keyspace, low, high } => {
                        let high = high.map_or("end".to_owned(), |high| form.write(high));
                        let low = form.write(low);
                        writeln!(out, "{}\t{low}\tto\t{high}", tell("remove range", keyspace))
                    }
                    other => writeln!(out, "{seq}\t{other:?}"),
                }
            }),
            other => writeln!(out, "{seq}\t{other:?}"),
        }
    }

    fn json(
        &self,
        record: &LogRecord<'_>,
        form: Form,
        names: &Names,
        out: &mut impl Write,
    ) -> std::io::Result<()> {
        let mut object = Map::new();
        object.insert("seq".into(), record.position.seq.0.into());
        object.insert("history".into(), record.position.history.to_string().into());
        object.insert("time_ms".into(), record.time_ms.into());
        object.insert("segment".into(), record.segment.into());
        object.insert("offset".into(), record.offset.into());
        match &record.kind {
            LogRecordKind::History { writer } => {
                object.insert("writer".into(), hex(writer).into());
            }
            LogRecordKind::Batch { effects, .. } => {
                let effects = effects.clone().map(|effect| self.effect(&effect, form, names));
                object.insert("effects".into(), effects.collect::<Vec<_>>().into());
            }
            _ => {}
        }
        serde_json::to_writer(&mut *out, &object)?;
        writeln!(out)
    }

    fn effect(&self, effect: &LogEffect<'_>, form: Form, names: &Names) -> Value {
        let mut object = Map::new();
        let mut begin = |kind: &str, id: u32| {
            object.insert("effect".into(), kind.into());
            object.insert("keyspace".into(), names.of(id).into());
        };
        match effect {
            LogEffect::Put { keyspace, key, value, expire_at } => {
                begin("put", *keyspace);
                form.put(&mut object, "key", key);
                if !self.keys_only {
                    form.put(&mut object, "value", value);
                }
                if *expire_at > 0 {
                    object.insert("expire_at".into(), (*expire_at).into());
                }
            }
            LogEffect::Remove { keyspace, key } => {
                begin("remove", *keyspace);
                form.put(&mut object, "key", key);
            }
            LogEffect::RemoveRange { keyspace, low, high } => {
                begin("remove range", *keyspace);
                form.put(&mut object, "from", low);
                if let Some(high) = high {
                    form.put(&mut object, "to", high);
                }
            }
            _ => {}
        }
        object.into()
    }
}
