// A TLS server on loopback in front of a KmipDouble, with certificates of its own, that fails in the ways wanted.
#pragma once

#include <atomic>
#include <string>
#include <thread>

#include <openssl/ssl.h>

#include "keyprovider/kmip/client/tls_connection.hpp"
#include "tests/support/kmip_double.hpp"

namespace coffer::tests {

template <auto free_function>
struct FreeBy {
    template <class T>
    void operator()(T* object) const noexcept {
        free_function(object);
    }
};
using CertificatePtr = std::unique_ptr<X509, FreeBy<X509_free>>;
using KeyPtr = std::unique_ptr<EVP_PKEY, FreeBy<EVP_PKEY_free>>;

struct Identity {
    CertificatePtr certificate;
    KeyPtr key;

    std::string certificate_pem() const;
    std::string key_pem() const;
    crypto::Digest fingerprint() const;
};

// What a certificate says.
struct CertificateWish {
    std::string common_name;
    std::string subject_alternative_name; // "DNS:localhost,IP:127.0.0.1"; empty: none
    std::string usage;                    // extended key usage; empty: an authority
    int64_t begins = -3600;               // seconds from now
    int64_t ends = 3600;
};

// Signed by `issuer`, or by itself where that is null. EC P-256.
Identity make_certificate(CertificateWish const& wish, Identity const* issuer);

enum class Fault {
    None,
    StallHandshake,  // takes the connection and says nothing
    Stall,           // takes the request and says nothing
    Cut,             // ends the connection in the middle of the answer
    Drip,            // sends the answer byte by byte, 50 ms apart
    Oversize,        // announces 1 GiB
    NotKmip,         // answers in another protocol
    DeepNesting,     // answers with thousands of structures in each other
    CloseAfterAnswer // as servers do with idle connections
};

class TlsServer {
public:
    TlsServer(Identity const& identity, Identity const& client_authority, int max_version = TLS1_3_VERSION);
    ~TlsServer();

    uint16_t port() const noexcept { return m_port; }
    KmipDouble& kmip() noexcept { return m_kmip; } // not while a request is under way
    std::atomic<Fault> fault{Fault::None};
    std::atomic<int> connections{0};

private:
    void serve();
    void converse(SSL* ssl, int socket);
    void answer(SSL* ssl, ByteVector answer);

    KmipDouble m_kmip;
    std::unique_ptr<SSL_CTX, FreeBy<SSL_CTX_free>> m_context;
    int m_listener = -1;
    std::atomic<int> m_socket{-1};
    std::atomic<bool> m_stop{false};
    uint16_t m_port = 0;
    std::thread m_thread;
};

} // namespace coffer::tests
