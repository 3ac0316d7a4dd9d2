//! Who says anything over a link, in frames that are as they should be: for who tries what the other side makes of it.

use crate::format::wire::MessageKind;
use crate::replication::framing::{Handshake, Opener, Sealer};
use crate::serve::turns::{TurnOptions, secrets};

/// One side of a link, without a database.
pub struct Speaker {
    wire: Wire,
    /// What goes before all else.
    to_send: Vec<u8>,
}

enum Wire {
    Meeting(Box<Handshake>),
    Open(Box<(Sealer, Opener)>),
}

impl Speaker {
    /// In the place of a replica that has connected.
    pub fn client(options: &TurnOptions) -> Self {
        let (handshake, to_send) = Handshake::client(&secrets(options), options.nonce);
        Self { wire: Wire::Meeting(Box::new(handshake)), to_send }
    }

    /// In the place of a source that has listened.
    pub fn server(options: &TurnOptions) -> Self {
        let handshake = Handshake::server(&secrets(options), options.nonce);
        Self { wire: Wire::Meeting(Box::new(handshake)), to_send: Vec::new() }
    }

    /// Whether both have proven who they are.
    pub fn is_open(&self) -> bool {
        matches!(self.wire, Wire::Open(_))
    }

    /// Takes bytes that came; the messages that are whole by now, each with the number of its kind. Appends to `out` what is to be sent of
    /// the handshake.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Vec<(u8, Vec<u8>)>, String> {
        out.append(&mut self.to_send);
        match &mut self.wire {
            Wire::Meeting(handshake) => {
                let met = handshake.receive(bytes, out).map_err(|fault| fault.to_string())?;
                let Some((sealer, mut opener)) = met else { return Ok(Vec::new()) };
                opener.set_record_limit(1 << 31);
                self.wire = Wire::Open(Box::new((sealer, opener)));
            }
            Wire::Open(open) => open.1.receive(bytes),
        }
        let mut messages = Vec::new();
        while let Wire::Open(open) = &mut self.wire
            && let Some((kind, payload)) = open.1.next().map_err(|fault| fault.to_string())?
        {
            messages.push((kind.id(), payload));
        }
        Ok(messages)
    }

    /// Appends a message of this kind, or a part of one that goes on; nothing before the handshake is over.
    pub fn say(&mut self, kind: u8, payload: &[u8], goes_on: bool, out: &mut Vec<u8>) {
        let kinds = &MessageKind::ALL;
        let (_, kind) = kinds[usize::from(kind.wrapping_sub(1)) % kinds.len()];
        if let Wire::Open(open) = &mut self.wire {
            open.0.seal_part(kind, payload, goes_on, out);
        }
    }
}
