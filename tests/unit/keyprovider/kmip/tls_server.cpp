#include "tests/unit/keyprovider/kmip/tls_server.hpp"

#include <chrono>

#include <netinet/in.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>
#include <unistd.h>

namespace coffer::tests {

namespace {

void require(bool condition, char const* what) {
    if (!condition) throw std::runtime_error(what);
}

template <class Write>
std::string pem(Write write) {
    std::unique_ptr<BIO, FreeBy<BIO_free_all>> bio(::BIO_new(::BIO_s_mem()));
    require(bio && write(bio.get()) == 1, "PEM");
    char* data = nullptr;
    long const size = ::BIO_get_mem_data(bio.get(), &data);
    return {data, static_cast<size_t>(size)};
}

void add_extension(X509* certificate, X509* issuer, int nid, std::string const& value) {
    X509V3_CTX context;
    ::X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
    std::unique_ptr<X509_EXTENSION, FreeBy<X509_EXTENSION_free>> extension(
        ::X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
    require(extension && ::X509_add_ext(certificate, extension.get(), -1) == 1, "extension");
}

unsigned char const* uchars(char const* text) {
    // SAFETY: unsigned char may alias any object and has the same size and alignment.
    return reinterpret_cast<unsigned char const*>(text);
}

} // namespace

std::string Identity::certificate_pem() const {
    return pem([&](BIO* bio) { return ::PEM_write_bio_X509(bio, certificate.get()); });
}

std::string Identity::key_pem() const {
    return pem(
        [&](BIO* bio) { return ::PEM_write_bio_PrivateKey(bio, key.get(), nullptr, nullptr, 0, nullptr, nullptr); });
}

crypto::Digest Identity::fingerprint() const {
    std::array<unsigned char, 32> bytes{};
    unsigned size = bytes.size();
    require(::X509_digest(certificate.get(), ::EVP_sha256(), bytes.data(), &size) == 1, "digest");
    crypto::Digest digest{};
    std::memcpy(digest.data(), bytes.data(), digest.size());
    return digest;
}

Identity make_certificate(CertificateWish const& wish, Identity const* issuer) {
    static std::atomic<long> serial{1};
    Identity made{CertificatePtr(::X509_new()), KeyPtr(::EVP_EC_gen("P-256"))};
    auto* certificate = made.certificate.get();
    X509* signer = issuer ? issuer->certificate.get() : certificate;
    require(made.key && ::X509_set_version(certificate, X509_VERSION_3) == 1 &&
                ::ASN1_INTEGER_set(::X509_get_serialNumber(certificate), serial++) == 1 &&
                ::X509_gmtime_adj(::X509_getm_notBefore(certificate), wish.begins) &&
                ::X509_gmtime_adj(::X509_getm_notAfter(certificate), wish.ends) &&
                ::X509_set_pubkey(certificate, made.key.get()) == 1 &&
                ::X509_NAME_add_entry_by_txt(::X509_get_subject_name(certificate), "CN", MBSTRING_UTF8,
                                             uchars(wish.common_name.c_str()), -1, -1, 0) == 1 &&
                ::X509_set_issuer_name(certificate, ::X509_get_subject_name(signer)) == 1,
            "certificate");
    if (wish.usage.empty()) {
        add_extension(certificate, signer, NID_basic_constraints, "critical,CA:TRUE");
        add_extension(certificate, signer, NID_key_usage, "critical,keyCertSign");
    } else {
        add_extension(certificate, signer, NID_ext_key_usage, wish.usage);
    }
    if (!wish.subject_alternative_name.empty())
        add_extension(certificate, signer, NID_subject_alt_name, wish.subject_alternative_name);
    require(::X509_sign(certificate, issuer ? issuer->key.get() : made.key.get(), ::EVP_sha256()) > 0, "signature");
    return made;
}

TlsServer::TlsServer(Identity const& identity, Identity const& client_authority, int max_version)
    : m_context(::SSL_CTX_new(::TLS_server_method())) {
    auto* context = m_context.get();
    require(context && ::SSL_CTX_use_certificate(context, identity.certificate.get()) == 1 &&
                ::SSL_CTX_use_PrivateKey(context, identity.key.get()) == 1 &&
                ::X509_STORE_add_cert(::SSL_CTX_get_cert_store(context), client_authority.certificate.get()) == 1 &&
                ::SSL_CTX_set_min_proto_version(context, TLS1_VERSION) == 1 &&
                ::SSL_CTX_set_max_proto_version(context, max_version) == 1,
            "server context");
    ::SSL_CTX_set_security_level(context, 0); // so that it offers TLS 1.1 where it is told to
    ::SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
    m_listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    // SAFETY: the socket functions take any sockaddr_* as a sockaddr (POSIX, <sys/socket.h>).
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    require(::bind(m_listener, generic, size) == 0 && ::listen(m_listener, 8) == 0 &&
                ::getsockname(m_listener, generic, &size) == 0,
            "listening socket");
    m_port = ntohs(address.sin_port);
    m_thread = std::thread([this] { serve(); });
}

TlsServer::~TlsServer() {
    m_stop = true;
    ::shutdown(m_listener, SHUT_RDWR);
    if (int const socket = m_socket; socket >= 0) ::shutdown(socket, SHUT_RDWR);
    m_thread.join();
    ::close(m_listener);
}

void TlsServer::serve() {
    while (!m_stop) {
        int const socket = ::accept4(m_listener, nullptr, nullptr, SOCK_CLOEXEC);
        if (socket < 0) return;
        ++connections;
        m_socket = socket;
        if (m_stop) ::shutdown(socket, SHUT_RDWR);
        std::unique_ptr<SSL, FreeBy<SSL_free>> ssl(::SSL_new(m_context.get()));
        ::SSL_set_fd(ssl.get(), socket);
        converse(ssl.get(), socket);
        m_socket = -1;
        ::close(socket);
    }
}

void TlsServer::converse(SSL* ssl, int socket) {
    auto wait_for_the_end = [&] {
        char byte = 0;
        while (::recv(socket, &byte, 1, 0) > 0) {
        }
    };
    if (fault == Fault::StallHandshake) return wait_for_the_end();
    if (::SSL_accept(ssl) != 1) return;
    for (;;) {
        ByteVector request(kmip::k_item_header);
        auto read = [&](size_t from) {
            for (size_t done = from; done < request.size();) {
                int const got = ::SSL_read(ssl, request.data() + done, static_cast<int>(request.size() - done));
                if (got <= 0) return false;
                done += static_cast<size_t>(got);
            }
            return true;
        };
        if (!read(0)) return;
        request.resize(static_cast<size_t>(kmip::item_size(request)));
        if (!read(kmip::k_item_header)) return;
        if (fault == Fault::Stall) return wait_for_the_end();
        answer(ssl, m_kmip.answer(request));
        if (fault == Fault::Cut || fault == Fault::CloseAfterAnswer) return;
    }
}

void TlsServer::answer(SSL* ssl, ByteVector answer) {
    switch (fault.load()) {
    case Fault::Cut: answer.resize(answer.size() / 2); break;
    case Fault::Oversize: store_be<uint32_t>(answer, 4, 1U << 30); break;
    case Fault::NotKmip: {
        std::string_view text = "HTTP/1.1 400 Bad Request\r\n\r\n";
        answer.assign(as_bytes(text).begin(), as_bytes(text).end());
        break;
    }
    case Fault::DeepNesting:
        answer.clear();
        for (size_t left = 3000; left > 0; --left) {
            ByteVector header(kmip::k_item_header);
            store_be<uint32_t>(header, 0, 0x42007B01);
            store_be<uint32_t>(header, 4, static_cast<uint32_t>((left - 1) * kmip::k_item_header));
            append(answer, header);
        }
        break;
    case Fault::Drip:
        for (auto const& byte : answer) {
            if (m_stop || ::SSL_write(ssl, &byte, 1) != 1) return;
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
        }
        return;
    default: break;
    }
    ::SSL_write(ssl, answer.data(), static_cast<int>(answer.size()));
}

} // namespace coffer::tests
