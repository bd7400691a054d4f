//! The tables of a network namespace: `/proc/<pid>/net/*` (kernel: `net/ipv4/tcp_ipv4.c`, `udp.c`, `raw.c`, `fib_trie.c`,
//! `arp.c`, `net/ipv6/route.c`, `addrconf.c`, `net/unix/af_unix.c`, `net/packet/af_packet.c`, `net/netlink/af_netlink.c`).
//!
//! Addresses stand there as words of the machine's byte order, here little-endian, and are told in their usual notation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{lines, number, words};
use crate::name::AnyText;

/// A socket, of whatever family.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// `tcp`, `tcp6`, `udp`, `udp6`, `raw`, `raw6`, `unix`, `packet` or `netlink`: the table it stands in.
    pub protocol: String,
    /// Its inode, by which descriptors name it; 0 if no process holds it any more.
    pub inode: u64,
    /// Its own address: `127.0.0.1:80`, `[::1]:80`, a unix socket's path (`@` before an abstract one), an interface's number.
    #[serde(default, skip_serializing_if = "AnyText::is_empty")]
    pub local: AnyText,
    /// The other end's, where there is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remote: String,
    /// `LISTEN`, `ESTABLISHED`, …
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// `stream`, `datagram`, `seqpacket`, `raw`; of netlink its protocol's number.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
}

/// The tables of sockets.
pub const TABLES: [&str; 9] = ["unix", "tcp", "tcp6", "udp", "udp6", "raw", "raw6", "packet", "netlink"];

/// The sockets of the table called `protocol`; lines that are none are passed over.
pub fn sockets(protocol: &str, text: &[u8]) -> Vec<Socket> {
    let read: fn(&[u8]) -> Option<Socket> = match protocol {
        "unix" => unix,
        "packet" => packet,
        "netlink" => netlink,
        _ => inet,
    };
    let rows = lines(text).skip(1).filter_map(read);
    rows.map(|socket| Socket { protocol: protocol.into(), ..socket }).collect()
}

/// `include/net/tcp_states.h`; UDP and raw sockets use 1 and 7 of them.
const STATES: [&str; 13] = [
    "",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
];

/// The name of a state of TCP, by which unix sockets go too; empty if there is none of this number.
pub fn state_name(state: u32) -> &'static str {
    usize::try_from(state).ok().and_then(|state| STATES.get(state)).copied().unwrap_or_default()
}

fn named(names: &[&str], value: u64) -> String {
    let name = usize::try_from(value).ok().and_then(|at| names.get(at)).filter(|name| !name.is_empty());
    name.map_or_else(|| value.to_string(), |name| (*name).to_owned())
}

/// `sl: local remote st tx:rx tr:when retrnsmt uid timeout inode …`.
fn inet(line: &[u8]) -> Option<Socket> {
    let fields: Vec<&[u8]> = words(line).collect();
    let at = |n: usize| fields.get(n).copied();
    Some(Socket {
        local: AnyText::from(address(at(1)?)?.to_string()),
        remote: address(at(2)?)
            .filter(|a| a.port() != 0 || !a.ip().is_unspecified())
            .map_or(String::new(), |a| a.to_string()),
        state: named(&STATES, number(at(3)?, 16)?),
        uid: number(at(7)?, 10)?.try_into().ok(),
        inode: number(at(9)?, 10)?,
        ..Socket::default()
    })
}

fn address(text: &[u8]) -> Option<SocketAddr> {
    let colon = text.iter().position(|&b| b == b':')?;
    let port = number(text.get(colon + 1..)?, 16)?.try_into().ok()?;
    Some(SocketAddr::new(ip(text.get(..colon)?)?, port))
}

/// Words of eight digits: one or four.
fn ip(digits: &[u8]) -> Option<IpAddr> {
    let word = |digits: &[u8]| Some(u32::try_from(number(digits, 16)?).ok()?.to_le_bytes());
    match digits.len() {
        8 => Some(Ipv4Addr::from(word(digits)?).into()),
        32 => {
            let words = digits.chunks(8).map(word).collect::<Option<Vec<_>>>()?;
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?).into())
        }
        _ => None,
    }
}

/// The same in the order of the network, as the IPv6 tables of routes and addresses have them.
fn ip6(digits: &[u8]) -> Option<Ipv6Addr> {
    let bytes: [u8; 16] = hex::decode(digits).ok()?.try_into().ok()?;
    Some(bytes.into())
}

/// `include/linux/net.h`, `enum sock_type`.
const KINDS: [&str; 6] = ["", "stream", "datagram", "raw", "rdm", "seqpacket"];

/// `Num: RefCount Protocol Flags Type St Inode Path`; a path may hold spaces, and an abstract one any byte, `@` for zeros.
fn unix(line: &[u8]) -> Option<Socket> {
    let mut rest = line;
    let mut word = || {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(|&b| b == b' ').unwrap_or(rest.len());
        let (word, more) = rest.split_at(end);
        rest = more;
        word
    };
    let (_, _, _, flags, kind, state, inode) = (word(), word(), word(), word(), word(), word(), word());
    // `__SO_ACCEPTCON` (`include/linux/net.h`): it listens.
    let listens = number(flags, 16)? & 0x1_0000 != 0;
    let states = ["", "UNCONNECTED", "CONNECTING", "CONNECTED", "DISCONNECTING"];
    Some(Socket {
        local: AnyText::from(rest.strip_prefix(b" ").unwrap_or_default().to_vec()),
        state: if listens { "LISTEN".into() } else { named(&states, number(state, 16)?) },
        kind: named(&KINDS, number(kind, 16)?),
        inode: number(inode, 10)?,
        ..Socket::default()
    })
}

/// `sk RefCnt Type Proto Iface R Rmem User Inode`.
fn packet(line: &[u8]) -> Option<Socket> {
    let fields: Vec<&[u8]> = words(line).collect();
    let at = |n: usize| fields.get(n).copied();
    Some(Socket {
        kind: named(&KINDS, number(at(2)?, 10)?),
        local: AnyText::from(format!("interface {} protocol 0x{:04x}", number(at(4)?, 10)?, number(at(3)?, 16)?)),
        uid: number(at(7)?, 10)?.try_into().ok(),
        inode: number(at(8)?, 10)?,
        ..Socket::default()
    })
}

/// `sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode`.
fn netlink(line: &[u8]) -> Option<Socket> {
    let fields: Vec<&[u8]> = words(line).collect();
    let at = |n: usize| fields.get(n).copied();
    Some(Socket {
        kind: number(at(1)?, 10)?.to_string(),
        local: AnyText::from(format!("port {} groups 0x{:08x}", number(at(2)?, 10)?, number(at(3)?, 16)?)),
        inode: number(at(9)?, 10)?,
        ..Socket::default()
    })
}

/// A route.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// `10.0.0.0/8`, `::/0`.
    pub destination: String,
    /// Empty: on the link itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    /// The interface.
    pub interface: AnyText,
    /// Of several the least counts.
    pub metric: u64,
    /// `RTF_*` (`include/uapi/linux/route.h`).
    pub flags: u64,
}

/// `net/route`: `Iface Destination Gateway Flags RefCnt Use Metric Mask …`.
pub fn routes(text: &[u8]) -> Vec<Route> {
    let row = |line: &[u8]| {
        let fields: Vec<&[u8]> = words(line).collect();
        let at = |n: usize| fields.get(n).copied();
        let IpAddr::V4(mask) = ip(at(7)?)? else { return None };
        let gateway = ip(at(2)?)?;
        Some(Route {
            destination: format!("{}/{}", ip(at(1)?)?, u32::from(mask).count_ones()),
            gateway: if gateway.is_unspecified() { String::new() } else { gateway.to_string() },
            interface: AnyText::from(at(0)?.to_vec()),
            metric: number(at(6)?, 10)?,
            flags: number(at(3)?, 16)?,
        })
    };
    lines(text).skip(1).filter_map(row).collect()
}

/// `net/ipv6_route`: `destination length source length gateway metric references uses flags interface`, all in hex.
pub fn routes6(text: &[u8]) -> Vec<Route> {
    let row = |line: &[u8]| {
        let fields: Vec<&[u8]> = words(line).collect();
        let at = |n: usize| fields.get(n).copied();
        let gateway = ip6(at(4)?)?;
        Some(Route {
            destination: format!("{}/{}", ip6(at(0)?)?, number(at(1)?, 16)?),
            gateway: if gateway.is_unspecified() { String::new() } else { gateway.to_string() },
            interface: AnyText::from(at(9)?.to_vec()),
            metric: number(at(5)?, 16)?,
            flags: number(at(8)?, 16)?,
        })
    };
    lines(text).filter_map(row).collect()
}

/// A neighbour on a link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its address.
    pub address: String,
    /// Its hardware address.
    pub hardware: String,
    /// `ATF_*` (`include/uapi/linux/if_arp.h`): 2 is complete, 4 permanent.
    pub flags: u64,
    /// The interface.
    pub interface: AnyText,
}

/// `net/arp`: `address type flags hardware mask device`.
pub fn neighbours(text: &[u8]) -> Vec<Neighbour> {
    let row = |line: &[u8]| {
        let fields: Vec<&[u8]> = words(line).collect();
        let text = |n: usize| Some(String::from_utf8_lossy(fields.get(n)?).into_owned());
        Some(Neighbour {
            address: text(0)?,
            hardware: text(3)?,
            flags: number(fields.get(2)?.strip_prefix(b"0x")?, 16)?,
            interface: AnyText::from(fields.get(5)?.to_vec()),
        })
    };
    lines(text).skip(1).filter_map(row).collect()
}

/// An address of an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    /// `192.0.2.1`, `fe80::1/64`. The kernel's IPv4 table names neither length nor interface.
    pub address: String,
    /// The interface, where it is known.
    #[serde(default, skip_serializing_if = "AnyText::is_empty")]
    pub interface: AnyText,
}

/// `net/if_inet6`: `address index length scope flags name`, in hex.
pub fn addresses6(text: &[u8]) -> Vec<Address> {
    let row = |line: &[u8]| {
        let fields: Vec<&[u8]> = words(line).collect();
        let address = format!("{}/{}", ip6(fields.first()?)?, number(fields.get(2)?, 16)?);
        Some(Address { address, interface: AnyText::from(fields.get(5)?.to_vec()) })
    };
    lines(text).filter_map(row).collect()
}

/// `net/fib_trie`: the machine's own addresses are those whose leaf is followed by `/32 host LOCAL`.
pub fn addresses(text: &[u8]) -> Vec<Address> {
    let mut all = std::collections::BTreeSet::new();
    let mut leaf = String::new();
    for line in lines(text) {
        let line = String::from_utf8_lossy(line);
        match line.trim_start().split_once("-- ") {
            Some((_, address)) => leaf = address.trim().to_owned(),
            None if line.contains("/32 host LOCAL") && leaf.parse::<Ipv4Addr>().is_ok() => {
                all.insert(Address { address: leaf.clone(), interface: AnyText::default() });
            }
            None => {}
        }
    }
    all.into_iter().collect()
}

/// An interface and what passed through it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: AnyText,
    /// Bytes received.
    pub received: u64,
    /// Packets received.
    pub packets_received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Packets sent.
    pub packets_sent: u64,
}

/// `net/dev`: two lines of heading, then `name: eight numbers received, eight sent`.
pub fn interfaces(text: &[u8]) -> Vec<Interface> {
    let row = |line: &[u8]| {
        let colon = line.iter().rposition(|&b| b == b':')?;
        let numbers: Vec<u64> = words(line.get(colon + 1..)?).map_while(|word| number(word, 10)).collect();
        Some(Interface {
            name: AnyText::from(line.get(..colon)?.trim_ascii().to_vec()),
            received: *numbers.first()?,
            packets_received: *numbers.get(1)?,
            sent: *numbers.get(8)?,
            packets_sent: *numbers.get(9)?,
        })
    };
    lines(text).skip(2).filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_told_in_the_usual_notation() {
        let tcp = b"  sl  local_address rem_address   st ...\n   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 \
            00000000  1000        0 126 1 00 100 0 0 10 0\n   1: 0200000A:0016 0100000A:C001 01 0:0 0:0 0 0 0 127\n junk\n";
        let rows = sockets("tcp", tcp);
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].local.text.as_str(), rows[0].remote.as_str()), ("127.0.0.1:8080", ""));
        assert_eq!((rows[0].state.as_str(), rows[0].inode, rows[0].uid), ("LISTEN", 126, Some(1000)));
        assert_eq!((rows[1].remote.as_str(), rows[1].state.as_str()), ("10.0.0.1:49153", "ESTABLISHED"));
        let six = b"head\n 0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 5\n";
        assert_eq!(sockets("tcp6", six)[0].local.text, "[::1]:80");
        let unix = b"Num RefCount\n0: 2 0 00010000 0001 01 77 /run/a b.sock\n0: 2 0 0 0005 03 78 @abs\xff\n0: 3 0 0 0002 01 79\n";
        let rows = sockets("unix", unix);
        assert_eq!((rows[0].local.text.as_str(), rows[0].state.as_str()), ("/run/a b.sock", "LISTEN"));
        assert_eq!((rows[1].kind.as_str(), rows[1].local.to_bytes().unwrap()), ("seqpacket", b"@abs\xff".to_vec()));
        assert_eq!((rows[2].kind.as_str(), rows[2].inode, rows[2].local.is_empty()), ("datagram", 79, true));
        let packet = b"head\n0 3 3 0003 2 1 0 0 99\n";
        assert_eq!((sockets("packet", packet)[0].kind.as_str(), sockets("packet", packet)[0].inode), ("raw", 99));
        assert_eq!(sockets("netlink", b"h\n0 15 7 00000001 0 0 0 2 0 4\n")[0].local.text, "port 7 groups 0x00000001");
    }

    #[test]
    fn routes_neighbours_and_addresses() {
        let four = routes(b"Iface\tDest\neth0\t00000000\t010200C0\t0003\t0\t0\t5\t00000000\t0\t0\t0\n");
        assert_eq!(
            (four[0].destination.as_str(), four[0].gateway.as_str(), four[0].metric),
            ("0.0.0.0/0", "192.0.2.1", 5)
        );
        let six = routes6(
            b"fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 \
              00000100 1 0 00000001     eth0\n",
        );
        assert_eq!((six[0].destination.as_str(), six[0].metric, six[0].gateway.is_empty()), ("fd00::/64", 256, true));
        let arp = neighbours(b"IP address\n192.0.2.1  0x1  0x2  02:fc:00:00:00:05  *  eth0\n");
        assert_eq!((arp[0].hardware.as_str(), arp[0].flags), ("02:fc:00:00:00:05", 2));
        let local = addresses(b"Main:\n  +-- 0.0.0.0/0 3\n     |-- 127.0.0.0\n        /8 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\n");
        assert_eq!(local.iter().map(|a| a.address.as_str()).collect::<Vec<_>>(), ["127.0.0.1"]);
        let six = addresses6(b"fe8000000000000000fc00fffe000001 04 40 20 80     eth0\n");
        assert_eq!(six[0].address, "fe80::fc:ff:fe00:1/64");
        let dev = interfaces(b"Inter\n face\n    lo:    3193      29    0    0    0     0          0         0     7      8    0 0 0 0 0 0\n");
        assert_eq!((dev[0].received, dev[0].packets_sent, dev[0].name.text.as_str()), (3193, 8, "lo"));
    }
}
